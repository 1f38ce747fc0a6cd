"""The equations, each written once, on any array library."""
