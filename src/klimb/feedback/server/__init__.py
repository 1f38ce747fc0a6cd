"""The raters' page: application, guard, and serving."""
