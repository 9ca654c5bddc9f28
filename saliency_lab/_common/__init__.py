"""What every room needs and no room owns. Imports nothing else of the package."""
