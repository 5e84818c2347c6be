"""One module per lesson: what is measured, a verdict function for each claim, and `ledger(lm, prompt)` that does both."""
