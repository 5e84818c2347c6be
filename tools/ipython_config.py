# For every kernel of the course's environment; make lab and start.py put it there, into etc/ipython.
c.InteractiveShellApp.extensions = ["helpers.course.restarted", "helpers.course.tidy"]  # type: ignore[name-defined]  # noqa: F821
