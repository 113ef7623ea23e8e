"""The stages that measure encoders: `cohort` chooses patients, `measure` asks one encoder, `evaluate` compares them."""
