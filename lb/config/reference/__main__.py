"""`python -m lb.config.reference` in a checkout: write the reference of all keys anew."""

import sys
from pathlib import Path

from lb.config.errors import ConfigErrors
from lb.config.reference.describe import EXAMPLE, Incomplete, Reference
from lb.config.reference.markdown import markdown
from lb.config.reference.schema import schema
from lb.config.reference.trace import trace

ROOT = Path(__file__).parents[3]
MARKDOWN = "docs/CONFIGURATION.md"
SCHEMA = "deploy/sockmap-lb.schema.json"


def written() -> dict[str, str]:
    """What each file must hold; raises ConfigErrors and Incomplete."""
    reference = Reference(trace((ROOT / EXAMPLE).read_text(encoding="utf-8"), EXAMPLE))
    reference.check()
    return {MARKDOWN: markdown(reference), SCHEMA: schema(reference)}


def main() -> int:
    """Write the files; 1 if a key cannot be described."""
    try:
        files = written()
    except (ConfigErrors, Incomplete) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path, text in files.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
