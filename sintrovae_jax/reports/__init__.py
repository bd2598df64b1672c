"""Pages of HTML about runs: `report` of one, `comparison` of several. Each is a single file that loads nothing."""
