#include "text.h"

#include <stdlib.h>
#include <string.h>

bool equal(text a, const char *b) {
  return a.len == strlen(b) && memcmp(a.ptr, b, a.len) == 0;
}

bool same(text a, text b) {
  return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

bool starts_with(text whole, const char *start) {
  size_t len = strlen(start);
  return whole.len >= len && memcmp(whole.ptr, start, len) == 0;
}

bool contains(texts list, text wanted) {
  for (size_t i = 0; i < list.len; i++) {
    if (same(list.ptr[i], wanted)) return true;
  }
  return false;
}

void append(texts *list, text item) {
  list->ptr = realloc(list->ptr, (list->len + 1) * sizeof(text));
  list->ptr[list->len++] = item;
}

text join(const char *const pieces[]) {
  size_t len = 0;
  for (const char *const *piece = pieces; *piece != NULL; piece++) len += strlen(*piece);
  char *joined = calloc(len + 1, 1), *end = joined;
  for (const char *const *piece = pieces; *piece != NULL; piece++) end = stpcpy(end, *piece);
  return (text){.ptr = (uint8_t *)joined, .len = len};
}

const char *decimal(unsigned number, unsigned width, char buffer[11]) {
  char *digit = buffer + 10;
  *digit = '\0';
  for (unsigned written = 0; number > 0 || written < width; written++, number /= 10) {
    *--digit = (char)('0' + number % 10);
  }
  return digit;
}
