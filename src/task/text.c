#include "task/text.h"

#include <stdlib.h>

#include "base/mem.h"

json_t *text_json(const char *text)
{
    json_t *v = json_string(text);
    char *copy;

    if (v)
        return v;
    copy = xstrdup(text); /* a text that was cut inside a character, or a foreign one */
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    v = json_string(copy);
    free(copy);
    return v;
}
