"""``python -m cli``: see `cli.main`."""

from cli.main import console

console()
