"""auditkit: find, name and repair what a vision-language model gets wrong (AuditDM, arXiv 2512.16921)."""
