"""Measure what lessons cannot wait for: tools/measure.py is the command, helpers/data/measured what it writes.

steps.py      steps that are kept once they are finished; hashes and versions, which say whether they still count
job.py        one model and what is asked of it
files.py      one file for each part, with a header that says all about it
capitals.py   capital prompts: which are asked, which are answered right, what an edit changes
packed.py     prompts that begin alike, in one row
heads.py      every head replaced, where it looks, what it writes
phrasings.py  the same questions in other words
blocks.py     blocks taken out over text, their prices, pairs of them
factors.py    a block's output times a factor
sink.py       the first token: who writes it, who looks at it
findings.py   what the stored files say, in sentences

Imports run one way: sink, phrasings → blocks, heads, factors → files, capitals → job, packed → steps.
"""
