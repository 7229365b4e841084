"""``python -m shiftnorm``."""

from __future__ import annotations

from shiftnorm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
