"""The pages that tests of what is said read."""

from docs.tables import PAGES, ROOT

TEXT = {
    page.relative_to(ROOT).as_posix().removeprefix("docs/"): " ".join(page.read_text().split()) for page in PAGES
}  # each run of white space as one space
