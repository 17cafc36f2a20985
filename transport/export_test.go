package transport

// RecordDial wraps a test's dialer as this package wraps its own.
var RecordDial = recordDial
