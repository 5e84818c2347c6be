"""Grade a folder of notebooks that come from anywhere: tools/grade.py is the command, docs/grading.md the manual.

gather.py   files and folders become students and cells; nothing of a learner runs here
students.py whose file it is, told from its name and its folder's
course.py   what the lessons ask: each exercise's cell, name and stub, read from the notebooks
reading.py  the text of cells becomes statements: what each binds, may change and reads
plan.py     cells become, for each exercise, the few statements that its answer needs
box.py      asks the server below, watches it, starts it again
server.py   a warm process; for each exercise it forks one that is limited, watched and thrown away
linux.py    what Linux offers to shut a process in
seal.py     notices when a check has been changed, and undoes it
results.py  how a student did in an exercise, and which of several answers counts
report.py   the table, the teacher's summary, a page for each student
"""
