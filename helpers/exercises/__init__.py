"""One module per lesson: the exercises, their checks, hints and solutions. `core` is the small frame they share."""
