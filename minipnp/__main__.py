import sys

from minipnp.app.cli import main

sys.exit(main())
