package transport

// Noted wraps a test's dialer as this package wraps its own.
var Noted = noted
