"""Write results for people: tables, plots, report.html, contact sheets."""
