"""Every method and metric as a user would call Captum by hand. Imports nothing of ours."""
