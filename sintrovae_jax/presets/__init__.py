"""What recipes of one kind share: functions that return a config, to be changed further. Recipes are in configs/."""
