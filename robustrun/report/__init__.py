"""What came of the jobs: tables beside the papers' numbers, figures, one page of HTML."""
