"""`python -m magpie_hf` is `magpie-hf`."""

import sys

from .cli.main import main


sys.exit(main())
