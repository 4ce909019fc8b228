/*
 * text.h - a JSON string of any bytes: a text that was cut inside a character, or a foreign one, has '?' in it.
 */
#ifndef TASK_TEXT_H
#define TASK_TEXT_H
#include <jansson.h>

/* New reference, never NULL. */
json_t *text_json(const char *text);
#endif
