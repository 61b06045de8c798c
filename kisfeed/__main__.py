"""``python -m kisfeed``."""

from __future__ import annotations

from kisfeed.cli import main

if __name__ == "__main__":
    main()
