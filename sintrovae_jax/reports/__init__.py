"""HTML pages about runs: `report` on one run, `comparison` of several. Each is a single file that loads nothing."""
