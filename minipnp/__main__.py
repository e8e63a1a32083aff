import sys

from minipnp.cli import main

sys.exit(main())
