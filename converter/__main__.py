"""`python -m converter` is `convert`."""

import sys

from converter.cli import main

sys.exit(main())
