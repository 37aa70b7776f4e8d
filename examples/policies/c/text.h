// Texts of the contract: a pointer and a length, without a zero at the end. There is no <stdio.h> in a policy, since a
// policy has no files and no console.

#pragma once

#include "policy.h"

typedef policy_string_t text;
typedef policy_list_string_t texts;

bool equal(text a, const char *b);
bool same(text a, text b);
bool starts_with(text whole, const char *start);
bool contains(texts list, text wanted);

// Appends a text to a list; the list owns it from then on.
void append(texts *list, text item);

// Joins the pieces, of which the last is NULL, into a new text.
text join(const char *const pieces[]);

// Writes the number with as many digits as it has, and at least `width`; answers `buffer`'s part that holds them.
const char *decimal(unsigned number, unsigned width, char buffer[11]);
