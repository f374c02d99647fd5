"""The page of bundled models is what the script writes."""

from benchmarks.released_models import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
