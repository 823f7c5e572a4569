exception Refused {
  1: string why
}

service Demo {
  string told(1: i32 number)
  string a_method_with_a_name_so_long_that_the_sequence_id_lies_outside_of_the_first_bytes(1: i32 number)
  string refuse() throws (1: Refused refused)
  oneway void note(1: i32 number)
}
