"""python -m homeostat"""

from homeostat.cli import main

raise SystemExit(main())
