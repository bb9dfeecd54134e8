"""WHAT: legends, crosswalks, and the reference map brought onto the image grid."""
