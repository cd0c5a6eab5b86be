"""The workbench: comparing blocks at equal budgets and reporting what was found."""
