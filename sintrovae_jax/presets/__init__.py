"""The common parts of recipes of one kind, as functions that return a config to be changed. Recipes are in configs/."""
