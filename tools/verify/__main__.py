import sys

from tools.verify.verify import main

sys.exit(main())
