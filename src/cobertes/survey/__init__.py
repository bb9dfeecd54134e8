"""HOW MUCH: design-based area estimation from a sample interpreted by a person."""
