# A published R service inside its process: reads records, runs the code, writes the outputs.
#
# Law: one process belongs to one program. The Python process beside it speaks to the server, keeps the
# folders, and judges the outputs; here R values are made of JSON, and JSON is made of R values.
#
# Each message is the number of its bytes, four of them, and then so many bytes of JSON. They go through
# two pipes of their own, because what the code prints belongs to the standard output.

if (!requireNamespace("jsonlite", quietly = TRUE)) {
  cat("the R package jsonlite is missing (Debian: r-cran-jsonlite)\n", file = stderr())
  quit(status = 3)
}
options(warn = 1, bitmapType = "cairo", digits.secs = 6)

# Its own functions come from R's base alone: nothing that a service defines can take their place.
.mlbatch <- local(envir = new.env(parent = baseenv()), {
  arguments <- commandArgs(trailingOnly = TRUE)
  requests <- file(arguments[[1]], open = "rb", raw = TRUE)
  replies <- file(arguments[[2]], open = "wb", raw = TRUE)
  # Looked up once, and not for each record.
  parse_json <- jsonlite::parse_json
  close_devices <- grDevices::graphics.off

  hear <- function() {
    size <- readBin(requests, "integer", n = 1L, size = 4L, endian = "big")
    if (length(size) == 0L) return(NULL)
    pieces <- readBin(requests, "raw", n = size)
    while (length(pieces) < size) {
      piece <- readBin(requests, "raw", n = size - length(pieces))
      if (length(piece) == 0L) return(NULL)
      pieces <- c(pieces, piece)
    }
    text <- rawToChar(pieces)
    Encoding(text) <- "UTF-8"
    parse_json(text)
  }

  say <- function(text) {
    content <- charToRaw(enc2utf8(text))
    size <- writeBin(length(content), raw(), size = 4L, endian = "big")
    writeBin(c(size, content), replies)
    flush(replies)
  }

  # --- JSON to R ---

  # Values of one kind, without their missing ones: a vector of that kind. Mixed ones stay a list.
  as_vector <- function(items) {
    is_missing <- vapply(items, is.null, logical(1))
    kinds <- unique(vapply(items[!is_missing], function(item) class(item)[1], character(1)))
    if (length(kinds) == 0L) return(rep(NA, length(items)))
    if (all(kinds %in% c("integer", "numeric"))) empty <- NA_real_
    else if (identical(kinds, "logical")) empty <- NA
    else if (identical(kinds, "character")) empty <- NA_character_
    else return(lapply(items, function(item) if (is.null(item)) NA else item))
    items[is_missing] <- list(empty)
    vector <- unlist(items, use.names = FALSE)
    if (is.integer(vector)) as.double(vector) else vector
  }

  as_input <- function(type, value) {
    switch(type,
      logical = if (is.null(value)) NA else value,
      integer = if (is.null(value)) NA_integer_
                else if (abs(value) <= .Machine$integer.max) as.integer(value) else value,
      numeric = if (is.null(value)) NA_real_ else as.double(value),
      character = if (is.null(value)) NA_character_ else value,
      vector = if (is.null(value)) NULL else as_vector(value),
      matrix = if (is.null(value)) NULL
               else {
                 rows <- length(value)
                 columns <- if (rows) length(value[[1]]) else 0L
                 matrix(as_vector(do.call(c, value)), rows, columns, byrow = TRUE)
               },
      data.frame = if (is.null(value)) NULL
                   else {
                     columns <- lapply(value, as_vector)
                     # Not data.frame(): that takes time, and changes names.
                     rows <- if (length(columns)) length(columns[[1]]) else 0L
                     attr(columns, "row.names") <- .set_row_names(rows)
                     class(columns) <- "data.frame"
                     columns
                   })
  }

  # --- R to JSON ---

  plain <- function(x) {
    if (is.factor(x)) return(as.character(x))
    if (inherits(x, c("Date", "POSIXt", "difftime"))) return(format(x))
    x
  }

  items_of <- function(x) {
    x <- plain(x)
    if (is.list(x)) return(vapply(x, one_of, character(1), USE.NAMES = FALSE))
    if (is.logical(x)) out <- ifelse(x, "true", "false")
    else if (is.integer(x)) out <- sprintf("%d", x)
    else if (is.double(x)) {
      if (any(is.infinite(x))) stop("found an infinite number: JSON has none", call. = FALSE)
      out <- sprintf("%.17g", x)
    }
    else if (is.character(x)) {
      out <- vapply(enc2utf8(as.vector(x)), quoted, character(1), USE.NAMES = FALSE)
    }
    else stop("found ", class(x)[1], ", expected numbers, text or logical values", call. = FALSE)
    out[is.na(x)] <- "null"
    out
  }

  quoted <- function(text) {
    if (is.na(text)) return("null")
    if (!grepl("[\"\\\\[:cntrl:]]", text)) return(paste0("\"", text, "\""))
    as.character(jsonlite::toJSON(text, auto_unbox = TRUE))
  }

  one_of <- function(x) {
    if (is.null(x)) return("null")
    items <- items_of(x)
    if (length(items) != 1L) {
      stop("found ", length(items), " values, expected one", call. = FALSE)
    }
    items
  }

  list_of <- function(items) paste0("[", paste(items, collapse = ","), "]")

  as_output <- function(type, value) {
    if (is.null(value)) return("null")
    switch(type,
      vector = list_of(items_of(value)),
      matrix = {
        value <- if (is.data.frame(value)) as.matrix(value) else value
        if (!is.matrix(value)) {
          stop("found ", class(value)[1], ", expected a matrix", call. = FALSE)
        }
        rows <- seq_len(nrow(value))
        list_of(vapply(rows, function(row) list_of(items_of(value[row, ])), character(1)))
      },
      data.frame = {
        value <- if (is.matrix(value)) as.data.frame(value) else value
        if (!is.list(value) || is.null(names(value))) {
          stop("found ", class(value)[1], ", expected a data frame", call. = FALSE)
        }
        columns <- vapply(value, function(column) list_of(items_of(column)), character(1))
        labels <- vapply(names(value), quoted, character(1))
        paste0("{", paste(labels, columns, sep = ":", collapse = ","), "}")
      },
      one_of(value))
  }

  # --- the program ---

  # What R says itself: "Error in log(-1) : ..." as on its console.
  tried <- function(expression) {
    outcome <- try(expression, silent = TRUE)
    if (!inherits(outcome, "try-error")) return(list())
    reason <- conditionMessage(attr(outcome, "condition"))
    list(error = trimws(as.character(outcome)), reason = reason)
  }

  load_object <- function(name, path) {
    content <- gzfile(path, "rb")
    head <- tryCatch(readBin(content, "raw", n = 5L), finally = close(content))
    if (length(head) == 5L && rawToChar(head[1:2]) == "RD" && head[5] == as.raw(10L)) {
      load(path, envir = globalenv())
    } else {
      assign(name, readRDS(path), envir = globalenv())
    }
  }

  run <- function(code) for (expression in code) eval(expression, globalenv())

  before <- list()
  restore <- function() {
    rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv())
    list2env(before, globalenv())
  }

  start <- function() {
    program <- hear()
    input_types <- vapply(program$inputs, function(one) one[[2]], character(1))
    input_names <- vapply(program$inputs, function(one) one[[1]], character(1))
    output_types <- vapply(program$outputs, function(one) one[[2]], character(1))
    output_names <- vapply(program$outputs, function(one) one[[1]], character(1))
    rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv())
    fail <- function(what, outcome) {
      say(paste0("{\"problem\":", quoted(paste0(what, ": ", outcome$error)), "}"))
      quit(save = "no", status = 4)
    }
    for (object in program$objects) {
      outcome <- tried(load_object(object[[1]], object[[2]]))
      if (!is.null(outcome$error)) fail(paste0("object '", object[[1]], "'"), outcome)
    }
    outcome <- tried(code <- parse(text = program$code, keep.source = FALSE, encoding = "UTF-8"))
    if (!is.null(outcome$error)) fail("code", outcome)
    outcome <- tried(
      init <- parse(text = program$initCode, keep.source = FALSE, encoding = "UTF-8")
    )
    if (!is.null(outcome$error)) fail("initCode", outcome)
    before <<- as.list(globalenv(), all.names = TRUE)
    each <- expression()
    outcome <- tried(run(init))
    if (!is.null(outcome$error)) {
      # It may read what only a record brings: then it runs for each.
      missing <- paste0("object '", input_names, "' not found")
      if (!any(vapply(missing, grepl, logical(1), x = outcome$error, fixed = TRUE))) {
        fail("initCode", outcome)
      }
      restore()
      each <- init
    }
    close_devices()
    before <<- as.list(globalenv(), all.names = TRUE)
    say("{\"problem\":\"\"}")
    labels <- paste0(vapply(output_names, quoted, character(1)), ":")
    while (!is.null(record <- hear())) {
      setwd(record$folder)
      pairs <- character(0)
      writing <- NULL
      outcome <- tried({
        for (place in seq_along(input_names)) {
          value <- as_input(input_types[[place]], record$values[[place]])
          assign(input_names[[place]], value, envir = globalenv())
        }
        run(each)
        run(code)
        for (place in seq_along(output_names)) {
          writing <- output_names[[place]]
          if (!exists(writing, envir = globalenv(), inherits = FALSE)) next
          value <- as_output(output_types[[place]], get(writing, envir = globalenv()))
          pairs <- c(pairs, paste0(labels[[place]], value))
        }
      })
      error <- outcome$error
      if (!is.null(error)) {
        pairs <- character(0)
        # What is wrong with an output is said about it, and not about a function of this file.
        if (!is.null(writing)) error <- paste0("Error : output '", writing, "': ", outcome$reason)
      }
      close_devices()
      restore()
      setwd(program$home)
      flush(stdout())
      problem <- if (is.null(error)) "\"\"" else quoted(error)
      outputs <- paste0("{", paste(pairs, collapse = ","), "}")
      say(paste0("{\"problem\":", problem, ",\"outputs\":", outputs, "}"))
    }
  }

  list(start = start)
})
.mlbatch$start()
