package transport

// Noted makes a dialer of a test one of this package's.
var Noted = noted
