"""`python -m magpie_hf` is `magpie-hf`."""

import sys

from .cli import main


sys.exit(main())
