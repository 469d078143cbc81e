"""`python -m converter` is `convert`."""

import sys

from converter.cli.main import main

sys.exit(main())
