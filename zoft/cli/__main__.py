"""``python -m zoft.cli``."""

from zoft.cli import main

main()
