// Netron draws a node's attributes in its box, formats among them, where its options say so.
// Its page runs scripts of files only.
localStorage.options ??= JSON.stringify({ attributes: true });
