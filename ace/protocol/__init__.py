"""Protocols of several properties share these: patients, regions, dense tokens, intervals over patients."""
