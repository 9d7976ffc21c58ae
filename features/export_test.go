package features

// Judge is for the test that asks processes of other rights.
var Judge = judge
