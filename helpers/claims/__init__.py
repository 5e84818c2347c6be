"""One module per lesson: a pure verdict function per claim, and `ledger(lm, prompt)` that measures and judges."""
