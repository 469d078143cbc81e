/* placeholder include until lanes */
#include "encode_iq4.c"
