"""ORDER: the project file, the stages of a run and what is up to date."""
