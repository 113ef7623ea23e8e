"""What the protocols of several properties share: patients, regions, dense tokens, intervals over patients."""
