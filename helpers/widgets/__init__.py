"""One module per lesson: controls joined to a pure computation and a pure drawing. `base` is the frame they share."""
