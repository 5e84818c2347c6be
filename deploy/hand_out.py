"""Copy the lessons into a student's folder: python hand_out.py COURSE FOLDER

Only files that are not there yet are copied, so no student's work is ever overwritten. A lesson that was deleted comes back new.
Changed lessons do not arrive this way: hand them out under a new name, or by nbgitpuller (docs/teaching.md).
"""

import shutil
import sys
from pathlib import Path

FILES = ("notebooks/*.ipynb", "docs/*.md", "docs/*.png", "README.md")


def hand_out(course: Path, folder: Path) -> list[str]:
    """Returns the names of the files that are new in `folder`."""
    new = []
    for pattern in FILES:
        for source in sorted(course.glob(pattern)):
            name = source.relative_to(course)
            goal = folder / name
            if goal.exists():
                continue
            goal.parent.mkdir(parents=True, exist_ok=True)
            part = goal.with_name(goal.name + ".part")  # a full disk must not leave half a lesson
            try:
                shutil.copyfile(source, part)
                part.replace(goal)
            except OSError:
                part.unlink(missing_ok=True)
                raise
            new.append(str(name))
    return new


def main() -> int:
    course, folder = map(Path, sys.argv[1:3])
    try:
        new = hand_out(course, folder)
    except OSError as error:
        print(f"the lessons could not be copied to {folder} ({error.strerror}): see to the disk", file=sys.stderr)
        return 1
    print(f"{len(new)} new files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
