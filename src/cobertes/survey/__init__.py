"""HOW MUCH: design-based area estimation from a sample that a person has interpreted."""
